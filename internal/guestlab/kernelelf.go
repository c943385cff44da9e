package guestlab

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// ELF returns the path of the kernel's ELF file, out of the bzImage that its package has. Xen starts either; but to
// unpack XZ under emulation takes as long as the rest of a boot. The cache keeps it.
func (k *Kernel) ELF(ctx context.Context) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "elf", k.Name+"-"+k.Release)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	image, err := os.ReadFile(k.Image())
	if err != nil {
		return "", err
	}
	data, err := unpackKernel(ctx, image)
	if err != nil {
		return "", fmt.Errorf("guestlab: unpack %s: %w", k.Image(), err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(data); err != nil {
		return "", err
	}
	if err := tmp.Close(); err != nil {
		return "", err
	}
	return path, os.Rename(tmp.Name(), path)
}

// kernelWindow is how far back a packed kernel refers: "zstd -22 --ultra" made it.
const kernelWindow = 128 << 20

// unpackKernel takes the payload out of a bzImage (Documentation/arch/x86/boot.rst). Debian packs it by XZ, its
// cloud kernels by LZ4, and by Zstandard since 6.12.
func unpackKernel(ctx context.Context, image []byte) ([]byte, error) {
	const header = 0x250
	if len(image) < header || string(image[0x202:0x206]) != "HdrS" {
		return nil, fmt.Errorf("no bzImage")
	}
	sectors := uint64(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	from := (sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	size := uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if size < 8 || from+size > uint64(len(image)) {
		return nil, fmt.Errorf("a payload of %d bytes at %d", size, from)
	}
	payload := image[from : from+size-4] // behind it stands the unpacked size
	var data []byte
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ")):
		if err := require("xz"); err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, "xz", "-dc")
		cmd.Stdin = bytes.NewReader(payload)
		data, err = cmd.Output()
	case bytes.HasPrefix(payload, []byte("\x02\x21\x4c\x18")):
		data, err = io.ReadAll(lz4.NewReader(bytes.NewReader(payload)))
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(payload), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(kernelWindow)); err == nil {
			data, err = io.ReadAll(z)
			z.Close()
		}
	default:
		return nil, fmt.Errorf("payload begins with %x: packed in an unknown way", payload[:4])
	}
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(data, []byte("\x7fELF")) {
		return nil, fmt.Errorf("the payload is no ELF file")
	}
	return data, nil
}
