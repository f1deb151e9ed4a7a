#![doc = "Fuzz target `decode`: see [`fuzz::decode`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(decode);
