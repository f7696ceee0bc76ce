variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "count" {
  type    = number
  default = 2
}

variable "image" {
  type        = string
  default     = "web-service:v0.1"
  description = "Built on each client: nothing is pulled."
}

variable "provider" {
  type        = string
  default     = "consul"
  description = "Where the service is registered: consul or nomad."
}

job "web-service" {
  datacenters = var.datacenters

  group "web" {
    count = var.count

    # One for each host while there are enough of them.
    spread {
      attribute = "${node.unique.name}"
    }

    network {
      port "http" {
        to = 8080
      }
    }

    update {
      max_parallel     = 1
      min_healthy_time = "3s"
      healthy_deadline = "2m"
      auto_revert      = true
    }

    service {
      name     = "web-service"
      provider = var.provider
      port     = "http"

      check {
        type     = "http"
        path     = "/health"
        interval = "2s"
        timeout  = "2s"
      }
    }

    task "web-service" {
      driver = "docker"

      config {
        image      = var.image
        force_pull = false
        ports      = ["http"]
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
