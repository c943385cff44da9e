package ctype

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

var update = flag.Bool("update", false, "regenerate testdata from the kernels of the lab")

// unpack decompresses what a kernel build compressed, told by its magic.
func unpack(b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch src := bytes.NewReader(b); {
	case bytes.HasPrefix(b, []byte("\x7fELF")):
		return b, nil
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		r, err = gzip.NewReader(src)
	case bytes.HasPrefix(b, []byte("\xfd7zXZ")):
		r, err = xz.NewReader(src)
	case bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")):
		r, err = zstd.NewReader(src, zstd.WithDecoderConcurrency(1))
	case bytes.HasPrefix(b, []byte("\x02\x21\x4c\x18")):
		r = lz4.NewReader(src)
	default:
		return nil, fmt.Errorf("unknown compression: % x", b[:min(8, len(b))])
	}
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(r)
	if _, ok := r.(*xz.Reader); ok && err != nil && len(out) == 0 {
		return unxz(b) // kernels are packed with the BCJ filter, which that reader lacks
	}
	if len(out) > 0 { // the unpacked size follows the stream and is no part of it
		err = nil
	}
	return out, err
}

func unxz(b []byte) ([]byte, error) {
	cmd := exec.Command("xz", "-dc", "--single-stream")
	cmd.Stdin = bytes.NewReader(b)
	return cmd.Output()
}

// vmlinux unpacks a bzImage (Documentation/arch/x86/boot.rst: setup_sects,
// payload_offset, payload_length).
func vmlinux(image []byte) ([]byte, error) {
	if len(image) < 0x250 {
		return nil, fmt.Errorf("an image of %d bytes", len(image))
	}
	sects := int(image[0x1f1])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + int(binary.LittleEndian.Uint32(image[0x248:]))
	return unpack(image[start : start+int(binary.LittleEndian.Uint32(image[0x24c:]))])
}

func section(b []byte, name string) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	s := f.Section(name)
	if s == nil {
		return nil, fmt.Errorf("no section %s", name)
	}
	return s.Data()
}

// labDir is where the lab keeps its kernels.
func labDir() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "vmscope", "lab", "kernels")
}

// kernelBTF gives the BTF of a kernel that the lab has fetched, or of one of
// its modules.
func kernelBTF(kernel, module string) ([]byte, error) {
	dir := filepath.Join(labDir(), kernel)
	if module == "" {
		b, err := os.ReadFile(filepath.Join(dir, "vmlinuz"))
		if err != nil {
			return nil, err
		}
		if b, err = vmlinux(b); err != nil {
			return nil, err
		}
		return section(b, ".BTF")
	}
	var path string
	err := filepath.WalkDir(filepath.Join(dir, "modules"), func(p string, d os.DirEntry, err error) error {
		if name, _, _ := strings.Cut(filepath.Base(p), ".ko"); err == nil && !d.IsDir() && name == module {
			path = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", module, err)
	}
	if b, err = unpack(b); err != nil {
		return nil, err
	}
	return section(b, ".BTF")
}

// The fixtures are the BTF of Debian's 6.1 cloud kernel and of one of its
// modules, so that unit tests need no guest.
const (
	fixtureKernel = "bookworm-cloud"
	fixtureModule = "virtio_blk"
)

func fixture(t testing.TB, module string) []byte {
	t.Helper()
	name := "vmlinux"
	if module != "" {
		name = module
	}
	path := filepath.Join("testdata", fixtureKernel+"-"+name+".btf.zst")
	if *update {
		b, err := kernelBTF(fixtureKernel, module)
		if err != nil {
			t.Fatal(err)
		}
		w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, w.EncodeAll(b, nil), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = unpack(b); err != nil {
		t.Fatal(err)
	}
	return b
}
