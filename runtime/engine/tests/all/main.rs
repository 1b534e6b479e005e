//! The engine as data: requests in, events out, over tiny seeded models.

mod families;
mod invariance;
mod lifecycle;
mod random_traffic;
mod speculation;
mod support;
