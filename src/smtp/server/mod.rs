//! smtp/server/mod
