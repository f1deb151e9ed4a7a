#![doc = "Fuzz target `http`: see [`fuzz::http`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(http);
