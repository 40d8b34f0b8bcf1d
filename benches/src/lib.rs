//! Measurements of the payswitch parts: the criterion benches in `benches/`, and
//! the programs in `src/bin` that make their inputs.
