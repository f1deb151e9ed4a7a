//! Keeps the pages of other sites away, since a browser on this machine reaches what listens on loopback.

use super::error::ApiError;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

/// Refuses requests that a page of another site makes; and, where the server listens on loopback, those for another
/// name, since a page whose name was made to point here would pass for one of ours (DNS rebinding).
pub(crate) async fn own_pages_only(loopback: bool, request: Request, next: Next) -> Response {
    match check(request.headers(), loopback) {
        Ok(()) => next.run(request).await,
        Err(told) => ApiError::new(StatusCode::FORBIDDEN, "permission_denied", told).into_response(),
    }
}

fn check(headers: &HeaderMap, loopback: bool) -> Result<(), &'static str> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let foreign = "requests from the pages of other sites are refused";
    if let Some(origin) = headers.get(header::ORIGIN) {
        let authority =
            origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
        if authority != Some(host) {
            return Err(foreign);
        }
    }
    if text(header::HeaderName::from_static("sec-fetch-site")).is_some_and(|site| site.ends_with("-site")) {
        return Err(foreign);
    }
    if loopback && !names_loopback(host) {
        return Err("the server listens on loopback: ask for it as localhost, 127.0.0.1 or [::1]");
    }
    Ok(())
}

/// Whether a `Host` header means this machine.
fn names_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(pairs: &[(&'static str, &str)], loopback: bool) -> bool {
        let header = |(name, value): &(&'static str, &str)| (name.parse().unwrap(), value.parse().unwrap());
        check(&pairs.iter().map(header).collect(), loopback).is_ok()
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let host = ("host", "127.0.0.1:9464");
        assert!(checked(&[host], true));
        assert!(checked(&[host, ("origin", "http://127.0.0.1:9464"), ("sec-fetch-site", "same-origin")], true));
        for bad in [("origin", "https://example.org"), ("origin", "null"), ("origin", "http://127.0.0.1:1")] {
            assert!(!checked(&[host, bad], true), "{bad:?}");
        }
        assert!(!checked(&[host, ("sec-fetch-site", "cross-site")], false));
        assert!(!checked(&[host, ("sec-fetch-site", "same-site")], false));
        assert!(checked(&[host, ("sec-fetch-site", "none")], false));
    }

    #[test]
    fn on_loopback_only_its_own_names_are_answered() {
        for host in ["localhost:9464", "LOCALHOST", "127.0.0.1", "127.9.9.9:1", "[::1]:9464", "[::1]"] {
            assert!(checked(&[("host", host)], true), "{host}");
        }
        for host in ["rebound.example:9464", "", "10.0.0.1:9464", "localhost.example"] {
            assert!(!checked(&[("host", host)], true), "{host}");
            assert!(checked(&[("host", host)], false), "{host}");
        }
    }
}
