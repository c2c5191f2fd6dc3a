//! smtp/data
