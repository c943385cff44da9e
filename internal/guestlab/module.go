package guestlab

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ulikunitz/xz"
)

// A moduleTree is the modules that a kernel came with. Debian runs depmod when a kernel is installed, which never
// happens here, so dependencies are read from the modules themselves.
type moduleTree struct {
	dir     string
	files   map[string]string // name with underscores -> path
	builtin map[string]bool
}

// A module is one loadable file, unpacked.
type module struct {
	name string // with underscores, as lsmod prints it
	deps []string
	data []byte
}

// moduleName turns a file name into the name that the kernel uses.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func openModules(dir string) (*moduleTree, error) {
	t := &moduleTree{dir: dir, files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), ".ko") {
			t.files[moduleName(p)] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(list)) {
		t.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return t, nil
}

// closure returns the named modules and all that they need, in an order in which they can be loaded. A module that is
// built in is left out, and so is a wanted one that this kernel does not have: kernels differ in what is a module.
func (t *moduleTree) closure(wanted []string) ([]module, error) {
	var order []module
	state := map[string]bool{} // false: being visited
	var visit func(name string, optional bool) error
	visit = func(name string, optional bool) error {
		name = strings.ReplaceAll(name, "-", "_")
		if _, seen := state[name]; seen || t.builtin[name] {
			return nil
		}
		file, ok := t.files[name]
		if !ok {
			if optional {
				return nil
			}
			return fmt.Errorf("guestlab: module %s is needed and not there", name)
		}
		state[name] = false
		m, err := t.read(name, file)
		if err != nil {
			return err
		}
		for _, dep := range m.deps {
			if err := visit(dep, false); err != nil {
				return err
			}
		}
		state[name] = true
		order = append(order, m)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name, true); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func (t *moduleTree) read(name, file string) (module, error) {
	data, err := readModule(file)
	if err != nil {
		return module{}, err
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return module{}, fmt.Errorf("guestlab: module %s: %w", name, err)
	}
	m := module{name: name, data: data}
	section := f.Section(".modinfo")
	if section == nil {
		return module{}, fmt.Errorf("guestlab: module %s has no .modinfo", name)
	}
	info, err := section.Data()
	if err != nil {
		return module{}, fmt.Errorf("guestlab: module %s: %w", name, err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			m.deps = append(m.deps, strings.Split(list, ",")...)
		}
	}
	return m, nil
}

// readModule reads a module file and unpacks it: busybox loads none that is compressed.
func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(file) {
	case ".ko":
	case ".xz":
		if r, err = xz.NewReader(f); err != nil {
			return nil, fmt.Errorf("guestlab: %s: %w", filepath.Base(file), err)
		}
	default:
		return nil, fmt.Errorf("guestlab: %s: compression not known", filepath.Base(file))
	}
	return io.ReadAll(r)
}
