#![doc = "Fuzz target `flows`: see [`fuzz::flows`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(flows);
