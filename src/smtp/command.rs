//! smtp/command
