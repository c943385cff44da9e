// Package fslab tests the inference of file events on real guests: it knows the kinds of file systems to test, runs random
// operations on them, and records disks for tests without a guest.
//
//	for _, group := range fslab.ByKernel(fslab.FreshSets()) {
//		g := fslab.Boot(t, group.Kernel, group.Sets, seed, nil)
//		for _, s := range group.Sets { // each has a disk of its name
//			fslab.RunFSOps(t, g, s.Name, fslab.Options{Set: s, Seed: seed, Watch: watch})
//		}
//	}
//
// FreshSets leaves out those that start with what another recording left.
package fslab
