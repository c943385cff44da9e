package vmscope

import (
	"context"
	"errors"
	"fmt"
)

func openNBD(_ context.Context, uri string) ([]*Disk, error) {
	return nil, fmt.Errorf("%q: NBD: %w", uri, errors.ErrUnsupported)
}

func openMachineDisks(_ context.Context, target string) ([]*Disk, error) {
	return nil, fmt.Errorf("disks of %q: %w", target, errors.ErrUnsupported)
}
