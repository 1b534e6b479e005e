//! The sandbox, held against guests that no author would send and files that are no guests.

mod bounds;
mod cache;
mod files;
mod guests;
mod lies;
