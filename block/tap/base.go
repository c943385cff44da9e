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
				return message{Kind: msgAttached, PID: os.Getpid(), File: m.Raw}, nil
			}
		}
	}
	socket, err := m.export(ctx)
	return message{Kind: msgAttached, PID: os.Getpid(), Socket: socket, Export: m.ID}, err
}

// dialBase opens what an "attached" message tells.
func dialBase(ctx context.Context, m message) (base, error) {
	if m.URI != "" {
		return nbd.Dial(ctx, m.URI, nbd.Options{Timeout: readPatience})
	}
	if m.Socket == "" {
		return block.OpenFile(m.File)
	}
	return nbd.DialAddress(ctx, nbd.Address{Network: "unix", Addr: m.Socket, Export: m.Export}, nbd.Options{Timeout: readPatience})
}

// readPatience bounds a read of the disk's content: a guest that is stopped in the middle of a drain does not answer.
const readPatience = 20 * time.Second
