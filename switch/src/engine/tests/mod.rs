//! Tests of the engine: `driver` plays log, channel and clock around it; the
//! others each hold one part of docs/STATES.md.

mod checkpoint;
mod codec;
mod driver;
mod happy;
mod limits;
mod model;
mod replicas;
mod rules;
mod table;
