//go:build minimal

// The lab's Vault: the vendor's minimal one, which keeps data in memory or by Raft, and Consul's storage beside them, which a test
// needs.

package command

import (
	_ "github.com/hashicorp/vault/helper/builtinplugins"
	"github.com/hashicorp/vault/physical/consul"
)

func extendAddonHandlers(handlers *vaultHandlers) {
	handlers.physicalBackends["consul"] = consul.NewConsulBackend
}
