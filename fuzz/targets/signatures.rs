#![doc = "Fuzz target `signatures`: see [`fuzz::signatures`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(signatures);
