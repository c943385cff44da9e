// Package fslab tests the inference of file events on real guests: it knows the kinds of file systems to test, runs random
// operations on them, and records disks for tests without a guest.
package fslab
