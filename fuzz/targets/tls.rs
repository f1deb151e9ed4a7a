#![doc = "Fuzz target `tls`: see [`fuzz::tls`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(tls);
