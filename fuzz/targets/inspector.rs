#![doc = "Fuzz target `inspector`: see [`fuzz::inspector`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(inspector);
