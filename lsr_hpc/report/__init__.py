"""From finished run directories to a page with figures; reads files alone, and starts no MPI."""
