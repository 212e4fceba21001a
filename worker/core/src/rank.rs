//! A rank as a machine: what it does next at each point of its life.
