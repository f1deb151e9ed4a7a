#![doc = "Fuzz target `quic`: see [`fuzz::quic`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(quic);
