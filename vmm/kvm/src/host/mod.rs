//! What this machine can launch, and what is in the way.
