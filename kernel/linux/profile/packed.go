package profile

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow bounds the memory of zstd, as "zstd -22 --ultra" needs it.
const maxWindow = 128 << 20

// packing says how to unpack a file by its first bytes; nil if it is not packed.
func packing(head []byte) func(b []byte) ([]byte, error) {
	for magic, open := range map[string]func(r io.Reader) (io.Reader, error){
		"\xfd7zXZ\x00":     func(r io.Reader) (io.Reader, error) { return xz.ReaderConfig{DictCap: maxWindow}.NewReader(r) },
		"\x1f\x8b":         func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"BZh":              func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil },
		"\x28\xb5\x2f\xfd": zstdReader,
	} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return func(b []byte) ([]byte, error) { return unpack(b, open) }
		}
	}
	return nil
}

func zstdReader(r io.Reader) (io.Reader, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

func unpack(b []byte, open func(io.Reader) (io.Reader, error)) ([]byte, error) {
	r, err := open(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%w: unpack: %w", ErrFormat, err)
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	var out bytes.Buffer // grows as the bytes come
	n, err := io.Copy(&out, io.LimitReader(r, maxWhole+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: unpack: %w", ErrFormat, err)
	case n > maxWhole:
		return nil, errFormat("more than %d MiB when unpacked", maxWhole>>20)
	}
	return out.Bytes(), nil
}
