#![doc = "Fuzz target `captures`: see [`fuzz::captures`]."]
#![cfg_attr(fuzzing, no_main)]

fuzz::target!(captures);
