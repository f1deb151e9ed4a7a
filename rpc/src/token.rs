//! Page tokens (AIP-158): where a page ended, bound to the request that it continues.

use std::fmt::Write;

/// Why a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("page_token was not given out by this server: leave it empty to start from the first page")]
    Unreadable,
    #[error(
        "page_token belongs to another request: everything but page_size must stay as it was on the first page; leave \
         page_token empty to start over"
    )]
    OtherRequest,
}

impl From<TokenError> for tonic::Status {
    fn from(error: TokenError) -> tonic::Status {
        tonic::Status::invalid_argument(error.to_string())
    }
}

/// Of the layout below. Clients treat tokens as opaque, so it may change with any release.
const VERSION: u8 = 1;

/// Version (1 byte), fingerprint (8, big-endian) and payload, as hexadecimal digits. Not secret: it holds nothing that
/// its holder was not shown.
pub(crate) fn encode<const N: usize>(fingerprint: u64, payload: [u8; N]) -> String {
    let bytes = [VERSION].into_iter().chain(fingerprint.to_be_bytes()).chain(payload);
    bytes.fold(String::with_capacity(2 * (9 + N)), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The payload of a token that belongs to the request with this fingerprint; `None` for an empty token, the start.
pub(crate) fn decode<const N: usize>(token: &str, fingerprint: u64) -> Result<Option<[u8; N]>, TokenError> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = unhex(token).ok_or(TokenError::Unreadable)?;
    let Some((&[VERSION], rest)) = bytes.split_first_chunk::<1>() else {
        return Err(TokenError::Unreadable);
    };
    let Some((print, payload)) = rest.split_first_chunk::<8>() else {
        return Err(TokenError::Unreadable);
    };
    let payload = <[u8; N]>::try_from(payload).map_err(|_| TokenError::Unreadable)?;
    if u64::from_be_bytes(*print) != fingerprint {
        return Err(TokenError::OtherRequest);
    }
    Ok(Some(payload))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() > 256 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    digits.chunks_exact(2).map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}

/// A number that tells requests apart: 64-bit FNV-1a over each part with its length, the same in every process, so that
/// a token outlives a restart.
pub(crate) fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for part in parts {
        eat(&(part.len() as u64).to_le_bytes());
        eat(part);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stay_with_their_request() {
        let token = encode(42, [1, 2, 255]);
        assert_eq!(decode(&token, 42), Ok(Some([1, 2, 255])));
        assert_eq!(decode::<3>(&token, 43), Err(TokenError::OtherRequest));
        assert_eq!(decode::<3>("", 42), Ok(None));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let token = encode(1, [9; 3]);
        let other_version = format!("02{}", &token[2..]);
        for bad in ["x", "0", "00", &token[2..], &format!("{token}00"), &token.replace('9', "g"), &other_version] {
            assert_eq!(decode::<3>(bad, 1), Err(TokenError::Unreadable), "{bad}");
        }
        assert_eq!(decode::<3>(&"é".repeat(12), 1), Err(TokenError::Unreadable));
        assert_eq!(decode::<3>(&"0".repeat(1 << 20), 1), Err(TokenError::Unreadable));
    }

    #[test]
    fn parts_of_a_request_do_not_run_together() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_ne!(fingerprint(&[b"a"]), fingerprint(&[b"a", b""]));
        assert_eq!(fingerprint(&[b"a", b"b"]), fingerprint(&[b"a", b"b"]));
    }
}
