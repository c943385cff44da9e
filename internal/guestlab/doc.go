// Package guestlab boots stock Debian kernels under QEMU's software emulation and lets a test ask the guest about itself.
//
// It serves the integration tests, the demo and the benchmarks. A guest is a kernel as Debian ships it, KASLR on, with a
// small initramfs made here: busybox, some modules, and "rat", a helper program that creates known state inside the
// guest (processes, sockets, mappings, containers, load) and tells what the guest's own /proc says. That telling is the
// oracle: what vmscope reads from outside is compared with it field by field, by value.
//
// Needed on the host: apt-get, apt-cache, dpkg-deb, the Debian archive keyring, qemu-system-x86_64 (qemu-system-aarch64 and
// qemu-system-arm for guests of Arm) and the Go tool.
// Nothing is installed: packages are fetched with a private apt directory and unpacked under $VMSCOPE_LAB, or
// vmscope/lab in the user's cache directory. Where something is missing, Boot skips the test and says so on one line,
// or fails it if VMSCOPE_REQUIRE_GUESTS=1.
//
//	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud"})
//	out, err := g.Run(ctx, "uname -r")
//	procs, err := g.Processes(ctx)
package guestlab
