//! smtp/client/mod
