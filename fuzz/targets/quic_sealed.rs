#![doc = "Fuzz target `quic_sealed`: see [`fuzz::quic_sealed`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(quic_sealed);
