//! Tests of the engine: `driver` plays log, channel and clock around it; the
//! others each hold one part of the rule book.

mod driver;
mod happy;
mod model;
