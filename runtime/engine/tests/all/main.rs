//! The engine as data: requests in, events out, over tiny seeded models.

mod invariance;
mod lifecycle;
mod random_traffic;
mod support;
