package main

import (
	"slices"
	"testing"

	"vmscope/internal/guestlab"
)

// TestArm32Guest runs commands on a guest of 32-bit Arm, as TestI386Guest does. Its
// code is not read, so that the ids of users are unknown.
func TestArm32Guest(t *testing.T) {
	const name = "bookworm-armmp"
	if !slices.Contains(guestlab.OtherKernels(), name) {
		t.Skip(guestlab.KernelsVariable + " does not ask for " + name)
	}
	g := guestlab.Boot(t, guestlab.Config{Kernel: name, MemoryMiB: 1536, Modules: []string{"overlay"}})
	unknown := []string{"cgroup", "cmdline", "container", "egid", "euid", "exe", "gid", "root", "uid"}
	(&bits32{g, "armv7l", "short descriptors", unknown}).test(t)
}
