//! Native kernels, what they are and the machine they run on.
