use crate::Sysfs;
use thiserror::Error;

/// What inspection can fail at.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TuningError {
    /// No route to everywhere, IPv4 or IPv6.
    #[error("there is no default route to choose an interface by; {}", name_one(interfaces_up))]
    NoDefaultRoute {
        /// Interfaces that are up, loopback excluded.
        interfaces_up: Vec<String>,
    },
}

fn name_one(interfaces_up: &[String]) -> String {
    if interfaces_up.is_empty() {
        "no interface but loopback is up either: bring one up (ip link set dev NAME up) and name it with -i".to_owned()
    } else {
        format!("name an interface with -i; up are: {}", interfaces_up.join(", "))
    }
}

/// Route flags (linux/route.h): usable, and installed to refuse.
const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;

impl Sysfs {
    /// The interface of the default route with the lowest metric; of equals, IPv4 before IPv6, then the first listed.
    ///
    /// # Errors
    /// [`TuningError::NoDefaultRoute`].
    pub fn default_route_interface(&self) -> Result<String, TuningError> {
        let v4 = self.text("proc/net/route").unwrap_or_default();
        let v6 = self.text("proc/net/ipv6_route").unwrap_or_default();
        let routes = v4.lines().filter_map(default_route_v4).chain(v6.lines().filter_map(default_route_v6));
        // `min_by_key` returns the first of equals.
        match routes.min_by_key(|(metric, _)| *metric) {
            Some((_, name)) => Ok(name.to_owned()),
            None => Err(TuningError::NoDefaultRoute {
                interfaces_up: self
                    .interfaces()
                    .into_iter()
                    .filter(|interface| interface.up && !interface.is_loopback)
                    .map(|interface| interface.name)
                    .collect(),
            }),
        }
    }
}

fn usable(flags: u32) -> bool {
    flags & (RTF_UP | RTF_REJECT) == RTF_UP
}

/// Metric and interface of a line of `/proc/net/route` (net/ipv4/fib_trie.c, `fib_route_seq_show`), if it is a default
/// route: Iface Destination Gateway Flags RefCnt Use Metric Mask ...
fn default_route_v4(line: &str) -> Option<(u32, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let name = fields.next()?;
    let destination = fields.next()?;
    let flags = u32::from_str_radix(fields.nth(1)?, 16).ok()?;
    let metric: u32 = fields.nth(2)?.parse().ok()?;
    let mask = fields.next()?;
    (destination == "00000000" && mask == "00000000" && usable(flags)).then_some((metric, name))
}

/// The same of `/proc/net/ipv6_route` (net/ipv6/route.c, `rt6_info_route`): destination, its prefix length, source, its
/// prefix length, gateway, metric, references, uses, flags (all hexadecimal), interface.
fn default_route_v6(line: &str) -> Option<(u32, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let destination = fields.next()?;
    let prefix_len = fields.next()?;
    let metric = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    let flags = u32::from_str_radix(fields.nth(2)?, 16).ok()?;
    let name = fields.next()?;
    let everywhere = prefix_len == "00" && destination.bytes().all(|b| b == b'0');
    (everywhere && usable(flags) && name != "lo").then_some((metric, name))
}
