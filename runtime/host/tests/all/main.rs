//! The sandbox, held against guests that no author would send and files that are no guests.

mod bounds;
mod guests;
mod lies;
