package guestlab

import (
	"compress/gzip"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A xenRelease is a Xen of a Debian suite.
type xenRelease struct {
	version string // as in the names of packages and files
	suite   string
}

// xenReleases are what the lab can boot; the first is the default.
var xenReleases = []xenRelease{{"4.17", "bookworm"}, {"4.14", "bullseye"}, {"4.20", "trixie"}}

// XenVersions are the versions of Xen that the lab can boot, as in the names of Debian's packages; the first is the default.
func XenVersions() (list []string) {
	for _, r := range xenReleases {
		list = append(list, r.version)
	}
	return list
}

func lookupXen(version string) (xenRelease, error) {
	for _, r := range xenReleases {
		if r.version == version {
			return r, nil
		}
	}
	return xenRelease{}, fmt.Errorf("guestlab: no Xen %q; known: %s", version, strings.Join(XenVersions(), " "))
}

// packages are the hypervisor, the tools, and the few programs that those start.
func (r xenRelease) packages() []string {
	return []string{"xen-hypervisor-" + r.version + "-amd64", "xen-utils-" + r.version, "xen-utils-common", "xenstore-utils", "bash", "util-linux"}
}

// deviceModelPackage has the QEMU that emulates what HVM domains take for their devices.
const deviceModelPackage = "qemu-system-xen"

// neededPackage is what packages need of their suite here: libraries, and firmware. All are only unpacked.
var neededPackage = regexp.MustCompile("^(lib|zlib1g|seabios|qemu-system-data)")

// errNotFetched says that what a Xen host needs cannot be downloaded.
var errNotFetched = errors.New("not to be had from Debian's mirror")

// xenTools is a Xen in the cache: the hypervisor, and the tree of files that its packages bring.
type xenTools struct {
	xenRelease
	hvm bool // with the device model
	dir string
}

// hypervisor is the path of the hypervisor as a multiboot ELF file.
func (x *xenTools) hypervisor() string { return filepath.Join(x.dir, "xen.elf") }

func (x *xenTools) root() string { return filepath.Join(x.dir, "root") }

// fetchXen returns the tools, if so asked with the device model, downloading them first unless the cache has them: 14 to 23 MB,
// and 20 MB.
func fetchXen(ctx context.Context, version string, hvm bool) (*xenTools, error) {
	r, err := lookupXen(version)
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	x := &xenTools{r, hvm, filepath.Join(cache, "xen", r.version)}
	wanted := r.packages()
	if hvm {
		x.dir += "-hvm"
		wanted = append(wanted, deviceModelPackage)
	}
	if _, err := os.Stat(x.hypervisor()); err == nil {
		return x, nil
	}
	unlock, err := lockFile(ctx, x.dir+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(x.hypervisor()); err == nil {
		return x, nil
	}
	if err := require("apt-get", "apt-cache", "dpkg-deb"); err != nil {
		return nil, err
	}
	removeLeftovers(x.dir + ".tmp-*")
	tmp, err := os.MkdirTemp(filepath.Dir(x.dir), filepath.Base(x.dir)+".tmp-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	apt, err := newPrivateApt(ctx, filepath.Join(tmp, "apt"), hostMirrors("/etc/apt"), amd64.arch, []string{r.suite, r.suite + "-security"})
	if err != nil {
		return nil, fmt.Errorf("guestlab: Xen's packages: %w: %w", errNotFetched, err)
	}
	got := &xenTools{r, hvm, filepath.Join(tmp, "xen")}
	if err := os.Mkdir(got.dir, 0o755); err != nil {
		return nil, err
	}
	packages, err := apt.closure(ctx, neededPackage, wanted...)
	if err == nil {
		err = apt.unpack(ctx, got.root(), packages...)
	}
	if err != nil {
		return nil, fmt.Errorf("guestlab: Xen's packages: %w: %w", errNotFetched, err)
	}
	if err := gunzip(got.hypervisor(), filepath.Join(got.root(), "boot/xen-"+r.version+"-amd64.gz")); err != nil {
		return nil, err
	}
	return x, os.Rename(got.dir, x.dir)
}

func gunzip(to, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// libraryDirs are where a tree of unpacked packages has its libraries.
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"}

// addTo puts the tools into dom0's first file system: Xen's programs, what they start, and the libraries that all those
// need, which their ELF files name.
func (x *xenTools) addTo(c *cpioWriter) error {
	bin := "usr/lib/xen-" + x.version + "/bin/"
	own, err := os.ReadDir(filepath.Join(x.root(), bin))
	if err != nil {
		return err
	}
	programs := []string{"bin/bash", "usr/bin/flock"}
	for _, d := range own {
		programs = append(programs, bin+d.Name())
	}
	if x.hvm {
		programs = append(programs, "usr/libexec/xen-qemu-system-i386")
	}
	found, _ := filepath.Glob(filepath.Join(x.root(), "usr/bin/xenstore*"))
	for _, f := range found {
		programs = append(programs, strings.TrimPrefix(f, x.root()+"/"))
	}
	libs := map[string]string{}
	for _, p := range programs {
		file := filepath.Join(x.root(), p)
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) { // a suite with all in /usr
			file = filepath.Join(x.root(), "usr", p)
			data, err = os.ReadFile(file)
		}
		if err != nil {
			return err
		}
		if !strings.HasPrefix(string(data), "#!") {
			if err := x.libraries(file, libs); err != nil && !strings.HasPrefix(p, bin) {
				return err
			} else if err != nil {
				continue // one of Xen's own, in a language whose libraries are in no package here
			}
		}
		c.file(p, 0o755, data)
		if strings.HasPrefix(p, bin) {
			c.symlink("usr/bin/"+filepath.Base(p), "/"+p)
		}
	}
	// pthread_cancel opens it by name; xl cancels threads.
	if err := x.library("libgcc_s.so.1", libs); err != nil {
		return err
	}
	for name, from := range libs {
		if err := c.copy(libraryDirs[0]+"/"+name, from, 0o755); err != nil {
			return err
		}
	}
	c.symlink("lib64/ld-linux-x86-64.so.2", "/"+libraryDirs[0]+"/ld-linux-x86-64.so.2")
	if x.hvm {
		if err := errors.Join(x.addTree(c, "usr/lib/xen-"+x.version+"/boot"), x.addTree(c, "usr/share/seabios"), x.addTree(c, "usr/share/qemu")); err != nil {
			return err
		}
	}
	return x.addTree(c, "etc/xen")
}

// addTree adds all files below a directory.
func (x *xenTools) addTree(c *cpioWriter, dir string) error {
	return filepath.WalkDir(filepath.Join(x.root(), dir), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := strings.TrimPrefix(p, x.root()+"/")
		if d.Type() == fs.ModeSymlink {
			to, err := os.Readlink(p)
			c.symlink(name, to)
			return err
		}
		return c.copy(name, p, 0o755)
	})
}

// libraries adds to libs (a name to its path here) what an ELF file needs, and what that needs.
func (x *xenTools) libraries(file string, libs map[string]string) error {
	f, err := elf.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range needed {
		if err := x.library(name, libs); err != nil {
			return err
		}
	}
	return nil
}

func (x *xenTools) library(name string, libs map[string]string) error {
	if libs[name] != "" {
		return nil
	}
	dirs := slices.Concat(libraryDirs, []string{"usr/lib/xen-" + x.version + "/" + libraryDirs[0]})
	for _, dir := range dirs {
		path := filepath.Join(x.root(), dir, name)
		if _, err := os.Stat(path); err == nil {
			if err := x.libraries(path, libs); err != nil {
				return err
			}
			libs[name] = path
			return nil
		}
	}
	return fmt.Errorf("guestlab: library %s: %w", name, errors.ErrUnsupported)
}
