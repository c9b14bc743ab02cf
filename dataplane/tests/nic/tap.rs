//! A TAP of our own: frames between the kernel and a port.
