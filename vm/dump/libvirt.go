package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The header of libvirt's managed save (src/qemu/qemu_saveimage.h, struct
// _virQEMUSaveHeader): magic, version, length of the XML, whether the guest ran,
// compression, and more up to 92 bytes. The stream is behind the XML.
const (
	libvirtMagic  = "LibvirtQemudSave"
	libvirtHeader = 92
)

// libvirtPackers are the programs by their numbers (enum virQEMUSaveFormat). Of 0 the
// stream is as it is, and of libvirtSparse.
var libvirtPackers = map[uint32]string{1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd"}

// libvirtSparse has the capability mapped-ram.
const libvirtSparse = 6

// behind is a source without its first bytes.
type behind struct {
	source
	skip uint64
}

func (b behind) Size() uint64 { return b.source.Size() - b.skip }

func (b behind) ReadAt(p []byte, off int64) (int, error) {
	return b.source.ReadAt(p, off+int64(b.skip))
}

// libvirtStream gives the stream of a save image. f is its own from then on.
func libvirtStream(f source, o options) (source, error) {
	var h [libvirtHeader]byte
	if err := readFull(f, h[:], 0); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: its header has %d bytes, the file has %d", ErrTruncated, libvirtHeader, f.Size()), f.Close())
	}
	le := binary.LittleEndian
	version, xml, packing := le.Uint32(h[16:]), uint64(le.Uint32(h[20:])), le.Uint32(h[28:])
	off := libvirtHeader + xml
	var err error
	switch {
	case version < 1 || version > 2:
		err = fmt.Errorf("%w: version %d", ErrFormat, version)
	case off >= f.Size():
		err = fmt.Errorf("%w: its XML ends at byte %d, the file has %d", ErrTruncated, off, f.Size())
	case packing == 0 || packing == libvirtSparse:
		return behind{f, off}, nil
	}
	for _, p := range packers {
		if err == nil && p.name == libvirtPackers[packing] {
			src, head, err := p.unpack(f, off, o)
			if err != nil {
				return nil, fmt.Errorf("%w (what is packed begins at byte %d)", err, off)
			}
			if !bytes.HasPrefix(head, []byte(streamMagic)) {
				return nil, errors.Join(fmt.Errorf("%w: what is packed from byte %d on is no stream", ErrFormat, off), src.Close())
			}
			return src, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("%w: its stream is packed by method %d, which is not known", ErrFormat, packing)
	}
	return nil, errors.Join(err, f.Close())
}
