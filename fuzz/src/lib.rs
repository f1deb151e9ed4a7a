#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod captures;
mod decode;
mod flows;
mod mutate;
mod quic;
mod replay;
pub mod seeds;

pub use captures::captures;
pub use decode::{check_packet, decode, filter};
pub use flows::flows;
pub use hints::fuzz::{dns, http, inspector, others as signatures, quic, tls};
pub use mutate::Mutator;
pub use quic::quic_sealed;
pub use replay::replay;

/// One parser under attack: bytes of nobody's choosing in, a panic where something does not hold that has to.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of the binary, and of the folder of its seeds.
    pub name: &'static str,
    /// What is done with the bytes.
    pub attack: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 11] = [
    Target { name: "decode", attack: decode },
    Target { name: "captures", attack: captures },
    Target { name: "filter", attack: filter },
    Target { name: "tls", attack: tls },
    Target { name: "dns", attack: dns },
    Target { name: "quic", attack: quic },
    Target { name: "quic_sealed", attack: quic_sealed },
    Target { name: "http", attack: http },
    Target { name: "signatures", attack: signatures },
    Target { name: "inspector", attack: inspector },
    Target { name: "flows", attack: flows },
];

/// The body of a target's binary: under `cargo fuzz` libFuzzer calls the function of that name, otherwise the files named
/// on the command line are run through it once.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::$name(bytes));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::replay($crate::$name)
        }
    };
}
