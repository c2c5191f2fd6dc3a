//! smtp/reply
