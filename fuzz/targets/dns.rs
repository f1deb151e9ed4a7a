#![doc = "Fuzz target `dns`: see [`fuzz::dns`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(dns);
