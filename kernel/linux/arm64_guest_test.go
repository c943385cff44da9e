package linux_test

import (
	"slices"
	"testing"

	"vmscope/arch"
	"vmscope/arch/arm64"
	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
)

// arm64Mode is how Linux translates addresses of so many bits.
func arm64Mode(g arm64.Granule, bits uint8) arch.Mode {
	high := arm64.Half{Granule: g, Bits: bits, Wide: g == arm64.Granule64K || bits == 52, Dirty: true}
	low := high
	low.TopIgnored = true
	return arm64.Mode{Low: low, High: high}
}

// TestArm64Guest finds the kernel of AArch64 guests and compares what it lists
// with what they say of themselves: with pages of 4, 16 and 64 KiB, with 39 to 52
// bits of address, of which a kernel for 52 uses 48 on a processor that has no more.
func TestArm64Guest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	if len(guestlab.OtherKernels()) == 0 {
		t.Skip(guestlab.KernelsVariable + " asks for none of these kernels")
	}
	for _, c := range []struct {
		name string
		cfg  guestlab.Config
		mode arch.Mode
		all  bool
	}{
		{"4K", guestlab.Config{Kernel: "trixie-cloud-arm64", CPUs: 2}, arm64Mode(arm64.Granule4K, 48), true},
		{"LPA2", guestlab.Config{Kernel: "trixie-cloud-arm64", CPUModel: "max,pauth-impdef=on"}, arm64Mode(arm64.Granule4K, 52), false},
		{"16K", guestlab.Config{Kernel: "trixie-arm64-16k", CPUModel: "neoverse-n1"}, arm64Mode(arm64.Granule16K, 47), false},
		{"64K", guestlab.Config{Kernel: "arm64-64k-52", CPUs: 2, CPUModel: "max,pauth-impdef=on"}, arm64Mode(arm64.Granule64K, 52), true},
		{"64K for 52 bits on 48", guestlab.Config{Kernel: "arm64-64k-52"}, arm64Mode(arm64.Granule64K, 48), false},
		{"64K with 42 bits", guestlab.Config{Kernel: "arm64-64k-42"}, arm64Mode(arm64.Granule64K, 42), true},
		{"4K with 39 bits", guestlab.Config{Kernel: "arm64-4k-39"}, arm64Mode(arm64.Granule4K, 39), true},
	} {
		if !slices.Contains(guestlab.OtherKernels(), c.cfg.Kernel) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			g := guestlab.Boot(t, c.cfg)
			s := &state{g: g, m: openRAM(t, g.RAMFile(), "virt")}
			k, err := linux.Find(t.Context(), s.m, linux.Hints{})
			if err != nil {
				t.Fatal(err)
			}
			s.k = k
			t.Logf("%s, %v", k.Release, k.Mode)
			check(t, g, s.m, k, c.mode)
			pids := oddProcesses(t, g)
			v := k.View(s.m)
			t.Run("processes", func(t *testing.T) { compareProcesses(t, g, v, pids) })
			t.Run("space", func(t *testing.T) { compareSpace(t, g, v, pids) })
			t.Run("modules", s.testModules)
			t.Run("inferred types", s.testInferred)
			t.Run("log", s.testLog)
			if !c.all {
				return
			}
			t.Run("without VMCOREINFO", func(t *testing.T) { checkWithoutCoreInfo(t, withoutCoreInfo(t, g.RAMFile(), "virt"), k) })
			t.Run("threads", func(t *testing.T) { compareThreads(t, g, v) })
			t.Run("known", func(t *testing.T) { checkKnown(t, g, v, pids) })
			t.Run("environ", func(t *testing.T) { compareEnviron(t, g, v, pids) })
			t.Run("module symbols", s.testModuleSymbols)
			t.Run("module types", s.testModuleTypes)
			t.Run("namespaces", s.testNamespaces)
		})
	}
}
