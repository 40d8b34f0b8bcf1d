//! Canonical form and signatures of merchants' requests.
