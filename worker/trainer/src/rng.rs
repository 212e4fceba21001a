//! Counter-based random numbers. (Written next to this trait; see the module's owner.)
