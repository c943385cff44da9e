package guestlab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A source says where a kernel of the lab comes from. ABI numbers move with every point release, so it names Debian's
// meta package, whose dependencies lead to the kernel of the day.
type source struct {
	name     string
	suites   []string // searched together; the newest version wins
	meta     string   // "": the kernel is built, by scripts/arm64-kernels
	note     string
	platform *platform
	rare     bool // for long tests
}

var sources = []source{
	// The meta packages of an old stable release live on in its security suite.
	{"bullseye-cloud", []string{"bullseye", "bullseye-security"}, "linux-image-cloud-amd64", "5.10", amd64, false},
	{"bookworm-cloud", []string{"bookworm"}, "linux-image-cloud-amd64", "6.1", amd64, false},
	{"bookworm", []string{"bookworm"}, "linux-image-amd64", "6.1, all drivers, ext4 as a module", amd64, false},
	{"trixie-cloud", []string{"trixie"}, "linux-image-cloud-amd64", "6.12", amd64, false},
	{"sid-cloud", []string{"sid"}, "linux-image-cloud-amd64", "7.x or newer", amd64, false},

	{"bookworm-686", []string{"bookworm"}, "linux-image-686", "6.1, 32 bits, two levels of page tables", i386, true},
	{"bookworm-686-pae", []string{"bookworm"}, "linux-image-686-pae", "6.1, 32 bits, PAE", i386, true},
	{"bookworm-cloud-arm64", []string{"bookworm"}, "linux-image-cloud-arm64", "6.1, AArch64, which names functions only", arm64, true},
	{"trixie-cloud-arm64", []string{"trixie"}, "linux-image-cloud-arm64", "6.12, AArch64", arm64, false},
	{"trixie-arm64-16k", []string{"trixie"}, "linux-image-arm64-16k", "6.12, AArch64, pages of 16 KiB, all drivers", arm64, true},
	// Debian ships none like these: scripts/arm64-kernels builds them of its source.
	{"arm64-64k-52", nil, "", "6.12, AArch64, pages of 64 KiB, 52 bits of address", arm64, true},
	{"arm64-64k-42", nil, "", "6.12, AArch64, pages of 64 KiB, 42 bits of address", arm64, true},
	{"arm64-4k-39", nil, "", "6.12, AArch64, pages of 4 KiB, 39 bits of address", arm64, true},
	{"bookworm-armmp", []string{"bookworm"}, "linux-image-armmp", "6.1, 32-bit Arm, short descriptors", armhf, true},
	{"bookworm-armmp-lpae", []string{"bookworm"}, "linux-image-armmp-lpae", "6.1, 32-bit Arm, long descriptors (LPAE)", armhf, true},
}

// Kernels returns the short names of the kernels for PCs of 64 bits, oldest kernel first.
func Kernels() []string { return kernels(func(s source) bool { return s.platform == amd64 }) }

// OtherKernels returns the short names of the kernels for other processors and modes that tests shall use: by default
// those that are not rare; of all of them those that $VMSCOPE_KERNELS names, if that is set.
func OtherKernels() []string {
	asked := os.Getenv(KernelsVariable)
	return kernels(func(s source) bool {
		switch {
		case s.platform == amd64:
			return false
		case asked == "":
			return !s.rare
		}
		return asked == "all" || slices.Contains(strings.Split(asked, ","), s.name)
	})
}

func kernels(of func(source) bool) (names []string) {
	for _, s := range sources {
		if of(s) {
			names = append(names, s.name)
		}
	}
	return names
}

func lookupSource(name string) (source, error) {
	for _, s := range sources {
		if s.name == name {
			return s, nil
		}
	}
	return source{}, fmt.Errorf("guestlab: no kernel %q; known: %s", name, strings.Join(kernels(func(source) bool { return true }), " "))
}

// Kernel is a fetched kernel in the cache.
type Kernel struct {
	Name    string // short name, such as "bookworm-cloud"
	Release string // as uname -r prints it
	Arch    string // as Debian names it: "amd64", "arm64", "i386", "armhf"
	Dir     string // holds vmlinuz, config, busybox and modules/; read only for all but Fetch
}

// Image is the path of the bootable kernel.
func (k *Kernel) Image() string { return filepath.Join(k.Dir, "vmlinuz") }

// Busybox is the path of the static busybox of the kernel's suite.
func (k *Kernel) Busybox() string { return filepath.Join(k.Dir, "busybox") }

// ModuleDir is the directory that the guest would call /lib/modules/RELEASE.
func (k *Kernel) ModuleDir() string { return filepath.Join(k.Dir, "modules") }
