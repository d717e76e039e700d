//! A guest's life: board, memory, launch, vCPUs, devices, end.
