#![doc = "Fuzz target `filter`: see [`fuzz::filter`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(filter);
