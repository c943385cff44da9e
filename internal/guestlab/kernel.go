package guestlab

import (
	"fmt"
	"path/filepath"
	"strings"
)

// A source says where a kernel of the lab comes from. ABI numbers move with every point release, so it names Debian's
// meta package, whose dependencies lead to the kernel of the day.
type source struct {
	name   string
	suites []string // searched together; the newest version wins
	meta   string
	note   string
}

var sources = []source{
	// The meta packages of an old stable release live on in its security suite.
	{"bullseye-cloud", []string{"bullseye", "bullseye-security"}, "linux-image-cloud-amd64", "5.10"},
	{"bookworm-cloud", []string{"bookworm"}, "linux-image-cloud-amd64", "6.1"},
	{"bookworm", []string{"bookworm"}, "linux-image-amd64", "6.1, all drivers, ext4 as a module"},
	{"trixie-cloud", []string{"trixie"}, "linux-image-cloud-amd64", "6.12"},
	{"sid-cloud", []string{"sid"}, "linux-image-cloud-amd64", "7.x or newer"},
}

// Kernels returns the short names that Fetch and Config.Kernel know, oldest kernel first.
func Kernels() []string {
	names := make([]string, len(sources))
	for i, s := range sources {
		names[i] = s.name
	}
	return names
}

func lookupSource(name string) (source, error) {
	for _, s := range sources {
		if s.name == name {
			return s, nil
		}
	}
	return source{}, fmt.Errorf("guestlab: no kernel %q; known: %s", name, strings.Join(Kernels(), " "))
}

// Kernel is a fetched kernel in the cache.
type Kernel struct {
	Name    string // short name, such as "bookworm-cloud"
	Release string // as uname -r prints it
	Dir     string // holds vmlinuz, config, busybox and modules/; read only for all but Fetch
}

// Image is the path of the bootable kernel.
func (k *Kernel) Image() string { return filepath.Join(k.Dir, "vmlinuz") }

// Busybox is the path of the static busybox of the kernel's suite.
func (k *Kernel) Busybox() string { return filepath.Join(k.Dir, "busybox") }

// ModuleDir is the directory that the guest would call /lib/modules/RELEASE.
func (k *Kernel) ModuleDir() string { return filepath.Join(k.Dir, "modules") }
