package tap

import (
	"context"
	"os"
	"time"

	"vmscope/block"
	"vmscope/block/nbd"
)

// content makes the disk's content readable, and says how. A raw image is read where it lies: what QEMU has written by now is
// in the same host's page cache, or on the disk. All else QEMU exports.
func (m *mirror) content(ctx context.Context) (message, error) {
	if m.Raw != "" {
		if f, err := block.OpenFile(m.Raw); err == nil {
			defer f.Close()
			if f.Size() == m.Size {
				return message{Kind: msgAttached, PID: os.Getpid(), Content: Content{File: m.Raw}}, nil
			}
		}
	}
	socket, err := m.export(ctx)
	return message{Kind: msgAttached, PID: os.Getpid(), Content: Content{Socket: socket, Export: m.ID}}, err
}

// Content says how to read what a disk holds now. One of File, URI and Socket is set.
type Content struct {
	File   string `json:"file,omitempty"` // a raw image
	URI    string `json:"uri,omitempty"`  // of an NBD export
	Socket string `json:"socket,omitempty"`
	Export string `json:"export,omitempty"` // at the socket
}

// dialBase opens a disk's content. Beside an error there is none, not even one of a type.
func dialBase(ctx context.Context, m Content) (base, error) {
	var b base
	var err error
	switch o := (nbd.Options{Timeout: readPatience}); {
	case m.URI != "":
		b, err = nbd.Dial(ctx, m.URI, o)
	case m.Socket == "":
		b, err = block.OpenFile(m.File)
	default:
		b, err = nbd.DialAddress(ctx, nbd.Address{Network: "unix", Addr: m.Socket, Export: m.Export}, o)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// readNow reads what takes no time: a few blocks that are in the host's memory. It reports whether it read all of p.
func readNow(d block.Device, p []byte, off int64) bool {
	f, ok := d.(interface{ ReadNow([]byte, int64) bool })
	return ok && len(p) <= readMost && f.ReadNow(p, off)
}

// readPatience bounds a read of the disk's content: a guest that is stopped in the middle of a drain does not answer.
const readPatience = 20 * time.Second

// readBase reads, for as long as ctx lasts.
func readBase(ctx context.Context, c base, p []byte, off int64) error {
	if n, ok := c.(*nbd.Client); ok {
		_, err := n.ReadContext(ctx, p, off)
		return err
	}
	return block.ReadFull(c, p, off)
}
