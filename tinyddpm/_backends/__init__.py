"""What `tinyddpm.backends` makes public: the protocol of a backend, and the pieces of accelerated steppers."""
