package fsoracle

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// Extension is that of a recording in one file: a tar of the directory's four files, compressed by zstd.
const Extension = ".tar.zst"

// window is how far zstd looks back: the same metadata comes again and again.
const window = 64 << 20

// Pack writes a recording's directory as one file.
func Pack(w io.Writer, dir string) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	for _, name := range []string{metaFile, truthFile, logFile, baseFile} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && name == truthFile {
			var small bytes.Buffer
			if err = json.Compact(&small, data); err == nil {
				data = small.Bytes()
			}
		}
		if err == nil {
			err = t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))})
		}
		if err == nil {
			_, err = t.Write(data)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}

// Open reads what Pack wrote.
func Open(path string) (*Recording, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(4<<30))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var r Recording
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			r.plain()
			return &r, nil
		}
		if err != nil {
			return nil, fmt.Errorf("fsoracle: %s: %w", path, err)
		}
		data := make([]byte, h.Size)
		if _, err := io.ReadFull(t, data); err != nil {
			return nil, fmt.Errorf("fsoracle: %s: %w", path, err)
		}
		if err := r.take(h.Name, data); err != nil {
			return nil, fmt.Errorf("fsoracle: %s of %s: %w", h.Name, path, err)
		}
	}
}

func (r *Recording) take(name string, data []byte) error {
	switch name {
	case metaFile:
		return json.Unmarshal(data, &r.Meta)
	case truthFile:
		return json.Unmarshal(data, &r.Points)
	case baseFile:
		r.Base = data
	case logFile:
		r.Log = data
	default:
		return errors.New("no part of a recording")
	}
	return nil
}
